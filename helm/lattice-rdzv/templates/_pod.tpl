{{/* The one pod template of Deployment and StatefulSet. */}}

{{- define "lattice.pod" -}}
metadata:
  labels:
    {{- include "lattice.podLabels" . | nindent 4 }}
  {{- with (include "lattice.podAnnotations" .) }}
  annotations:
    {{- . | nindent 4 }}
  {{- end }}
spec:
  automountServiceAccountToken: false
  # Several members read the addresses of this release's Services as part of the cluster token. Otherwise the variables are left out,
  # because etcd warns about those that begin with ETCD_, which a Service of such a name would create.
  enableServiceLinks: {{ include "lattice.several" . | eq "true" }}
  serviceAccountName: {{ include "lattice.serviceAccountName" . }}
  {{- include "lattice.podSecurityContext" . | nindent 2 }}
  terminationGracePeriodSeconds: {{ int64 .Values.terminationGracePeriodSeconds }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- include "lattice.spread" . | nindent 2 }}
  {{- with .Values.dnsConfig }}
  dnsConfig:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  containers:
    {{- if include "lattice.embedded" . }}
    {{- include "lattice.embeddedContainer" . | nindent 4 }}
    {{- else }}
    - name: etcd
      image: {{ include "lattice.image" . | quote }}
      imagePullPolicy: {{ .Values.imagePullPolicy }}
      command: ["etcd"]
      args:
        {{- include "lattice.flags" . | nindent 8 }}
      env:
        - name: POD_NAME
          valueFrom: {fieldRef: {fieldPath: metadata.name}}
        - name: POD_UID
          valueFrom: {fieldRef: {fieldPath: metadata.uid}}
        {{- with (include "lattice.etcdctlEnvironment" . | trim) }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with .Values.etcd.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        {{- include "lattice.containerPorts" . | nindent 8 }}
      {{- include "lattice.probes" . | nindent 6 }}
      {{- with .Values.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- include "lattice.containerSecurityContext" . | nindent 6 }}
      volumeMounts:
        - name: data
          mountPath: /var/lib/etcd
        {{- if include "lattice.several" . }}
        # Not used by etcd. The kubelet starts no container whose `subPathExpr` has an unknown variable, so no member starts
        # before both addresses of the cluster token are known. Members with different tokens would never form a cluster.
        - name: token
          mountPath: /etc/lattice-rdzv/token
          subPathExpr: $({{ include "lattice.serviceVariable" .Values.clientService.name }})/$({{ include "lattice.serviceVariable" .Values.serverService.name }})
        {{- end }}
        {{- if .Values.tls.client.enabled }}
        - name: client-tls
          mountPath: /etc/lattice-rdzv/tls/client
          readOnly: true
        {{- end }}
        {{- if .Values.tls.peer.enabled }}
        - name: peer-tls
          mountPath: /etc/lattice-rdzv/tls/peer
          readOnly: true
        {{- end }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- if .Values.auth.enabled }}
    {{- include "lattice.authContainer" . | nindent 4 }}
    {{- end }}
    {{- end }}
    {{- with .Values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with (include (ternary "lattice.embeddedVolumes" "lattice.volumes" (eq (include "lattice.embedded" .) "true")) . | trim) }}
  volumes:
    {{- . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/*
The pod's annotations. They contain checksums of what a container reads only when it starts, so that a change replaces the pod: of the script,
and of the CAs if Helm can look up their Secrets. The embedded server reads the CAs at each handshake.
*/}}
{{- define "lattice.podAnnotations" -}}
{{- $annotations := deepCopy (default dict .Values.podAnnotations) -}}
{{- if not (include "lattice.embedded" .) -}}
{{- if .Values.auth.enabled -}}
{{- $_ := set $annotations "lattice-rdzv/auth-script" (.Files.Get "files/auth.py" | sha256sum | trunc 16) -}}
{{- end -}}
{{- range $side := list "client" "peer" -}}
{{- if (index $.Values.tls $side).enabled -}}
{{- $secret := lookup "v1" "Secret" $.Release.Namespace (include "lattice.tlsSecret" (dict "root" $ "side" $side)) -}}
{{- with dig "data" "ca.crt" "" (default dict $secret) -}}
{{- $_ := set $annotations (printf "lattice-rdzv/%s-ca" $side) (sha256sum . | trunc 16) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $annotations -}}{{- toYaml $annotations -}}{{- end -}}
{{- end -}}

{{- define "lattice.containerPorts" -}}
- name: client
  containerPort: {{ .Values.clientService.internalPort }}
{{- if ne (include "lattice.serverClientPort" .) "client" }}
- name: {{ include "lattice.serverClientPort" . }}
  containerPort: {{ .Values.serverService.clientPort.internalPort }}
{{- end }}
- name: server
  containerPort: {{ .Values.serverService.serverPort.internalPort }}
- name: metrics
  containerPort: {{ .Values.etcd.metricsPort }}
{{- end -}}

{{/* The container port to which the server Service forwards clients. */}}
{{- define "lattice.serverClientPort" -}}
{{- if or (include "lattice.embedded" .) (eq (int .Values.clientService.internalPort) (int .Values.serverService.clientPort.internalPort)) -}}client{{- else -}}server-client{{- end -}}
{{- end -}}

{{/*
Variables that make `kubectl exec POD -- etcdctl member list` work in every mode. Only settings without a usable default are set, because
etcdctl rejects a variable together with the corresponding flag.
*/}}
{{- define "lattice.etcdctlEnvironment" -}}
{{- if .Values.tls.client.enabled }}
- name: ETCDCTL_ENDPOINTS
  value: {{ include "lattice.advertiseClientURL" . | quote }}
- name: ETCDCTL_CACERT
  value: /etc/lattice-rdzv/tls/client/ca.crt
- name: ETCDCTL_CERT
  value: /etc/lattice-rdzv/tls/client/tls.crt
- name: ETCDCTL_KEY
  value: /etc/lattice-rdzv/tls/client/tls.key
{{- else if ne (int .Values.clientService.internalPort) 2379 }}
- name: ETCDCTL_ENDPOINTS
  value: {{ printf "http://127.0.0.1:%d" (int .Values.clientService.internalPort) | quote }}
{{- end }}
{{- end -}}

{{- define "lattice.volumes" -}}
{{- if not .Values.persistence.enabled }}
- name: data
  {{- if or (include "lattice.inMemory" .) (include "lattice.ephemeralSize" .) }}
  emptyDir:
    {{- if include "lattice.inMemory" . }}
    medium: Memory
    {{- end }}
    {{- with (include "lattice.ephemeralSize" .) }}
    sizeLimit: {{ . | quote }}
    {{- end }}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end }}
{{- if include "lattice.several" . }}
- name: token
  emptyDir: {}
{{- end }}
{{- if .Values.tls.client.enabled }}
- name: client-tls
  secret:
    secretName: {{ include "lattice.tlsSecret" (dict "root" . "side" "client") }}
    defaultMode: 0440
{{- end }}
{{- if .Values.tls.peer.enabled }}
- name: peer-tls
  secret:
    secretName: {{ include "lattice.tlsSecret" (dict "root" . "side" "peer") }}
    defaultMode: 0440
{{- end }}
{{- if .Values.auth.enabled }}
- name: auth
  secret:
    secretName: {{ .Values.auth.existingSecret }}
    defaultMode: 0440
- name: auth-script
  configMap:
    name: {{ include "lattice.authConfigMap" . }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
