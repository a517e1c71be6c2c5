{{/* What the client and the server Service have in common. */}}

{{/* (list root .Values.clientService) */}}
{{- define "lattice.serviceHead" -}}
{{- $root := index . 0 -}}
{{- $service := index . 1 -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ $service.name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "lattice.labelsWith" (list $service.labels $root) | nindent 4 }}
  {{- with $service.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  type: {{ $service.type }}
  {{- with $service.loadBalancerSourceRanges }}
  loadBalancerSourceRanges:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  selector:
    {{- include "lattice.podSelector" $root | nindent 4 }}
{{- end -}}

{{/* (list "client" "client" 2379 nodePort): the port's name, the container's, the Service's number and the machine's */}}
{{- define "lattice.servicePort" -}}
- name: {{ index . 0 }}
  port: {{ index . 2 }}
  targetPort: {{ index . 1 }}
  protocol: TCP
  {{- with index . 3 }}
  nodePort: {{ . }}
  {{- end }}
{{- end -}}
