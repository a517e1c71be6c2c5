{{/* The fields that the client Service and the dashboard's Service share. */}}

{{/* (dict "service" .Values.clientService "selector" (include "lattice.podSelector" .)) */}}
{{- define "lattice.serviceSpec" -}}
type: {{ .service.type }}
{{- with .service.loadBalancerClass }}
loadBalancerClass: {{ . }}
{{- end }}
{{- with .service.loadBalancerSourceRanges }}
loadBalancerSourceRanges:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .service.externalTrafficPolicy }}
externalTrafficPolicy: {{ . }}
{{- end }}
{{- with .service.internalTrafficPolicy }}
internalTrafficPolicy: {{ . }}
{{- end }}
{{- with .service.ipFamilyPolicy }}
ipFamilyPolicy: {{ . }}
{{- end }}
{{- with .service.ipFamilies }}
ipFamilies:
  {{- toYaml . | nindent 2 }}
{{- end }}
selector:
  {{- .selector | nindent 2 }}
{{- end -}}

{{/* (dict "key" "clientService" "service" .Values.clientService) */}}
{{- define "lattice.serviceRefusals" -}}
{{- $service := .service -}}
{{ .key }}-source-ranges:
  when: {{ and (gt (len (default list $service.loadBalancerSourceRanges)) 0) (ne $service.type "LoadBalancer") }}
  text: >-
    `{{ .key }}.loadBalancerSourceRanges` limits only load balancers, so it has no effect here; add --set {{ .key }}.type=LoadBalancer, or remove it.
    `{{ .key }}.type` is: `{{ $service.type }}`
{{ .key }}-load-balancer-class:
  when: {{ and (ne $service.loadBalancerClass "") (ne $service.type "LoadBalancer") }}
  text: >-
    `{{ .key }}.loadBalancerClass` is `{{ $service.loadBalancerClass }}`, but `{{ .key }}.type` is `{{ $service.type }}`; set the type to
    `LoadBalancer`, or remove the class
{{ .key }}-external-policy:
  when: {{ and (ne $service.externalTrafficPolicy "") (eq $service.type "ClusterIP") }}
  text: >-
    `{{ .key }}.externalTrafficPolicy` needs a Service of type `NodePort` or `LoadBalancer`, but `{{ .key }}.type` is `{{ $service.type }}`; remove the
    policy, or change the type
{{- end -}}
